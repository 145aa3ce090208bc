"""How good the images are: features, distances and the protocol that draws them."""
