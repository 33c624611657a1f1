"""The report's charts and templates, published figures, and README's generated parts."""
