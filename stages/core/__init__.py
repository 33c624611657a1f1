"""What every stage stands on: params, plug-ins, files, seeds, findings, checkpoints."""
