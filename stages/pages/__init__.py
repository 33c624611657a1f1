"""Charts, templates, and README's generated parts."""
