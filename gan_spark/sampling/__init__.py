"""What trained models make: generated images, mended ones, dreams, walks in latent space."""
