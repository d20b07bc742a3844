"""What every network shares: choosing a device, loading weights safely, the model registry, engines, sliding windows."""
