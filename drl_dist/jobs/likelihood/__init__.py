"""log Z and bits per dimension, on Ray actors."""
