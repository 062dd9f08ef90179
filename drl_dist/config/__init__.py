"""One typed tree of settings, its rules, and the presets of Table 6."""
