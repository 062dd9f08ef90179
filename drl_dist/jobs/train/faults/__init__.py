"""What training does when something fails: restarts, restoring, rollbacks, damaged samples."""
