"""Which rates and constants students train with: `make trials`, chosen on validation films."""
