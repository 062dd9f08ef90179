"""What every room may use: user errors, rules on options, places, exit statuses, progress, batches, images."""
