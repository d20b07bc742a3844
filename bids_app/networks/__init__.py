"""What every network shares: device choice, safe weight loading, the model registry, engines, sliding windows."""
