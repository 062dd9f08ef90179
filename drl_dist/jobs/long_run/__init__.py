"""Long-run chains with diagnostics."""
