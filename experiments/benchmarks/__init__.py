"""Speed against other libraries, and exported files against PyTorch."""
