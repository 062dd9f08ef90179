"""The forward process, keyed noise, and the conditional log-density with its losses."""
