# What this project uses of arviz-stats, whose own types bring all of scipy and xarray.
from typing import Any

array_stats: Any
