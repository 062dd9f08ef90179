# What this project uses of scikit-learn.
from typing import Any

def load_digits(*, return_X_y: bool = ...) -> Any: ...
