"""What all jobs share: the cluster, the output folder, options, the entry point, the model, the device."""
