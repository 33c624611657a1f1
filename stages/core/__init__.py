"""What every stage stands on: params and their schema, plug-ins, files, seeds, facts about findings, command lines."""
