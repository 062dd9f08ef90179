"""What a GPU gives in ten minutes: equality, rates, memory, gaps, the data pipeline and a short training."""
