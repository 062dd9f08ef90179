"""What a GPU could make at most of the chain's gradient, counted without one."""
