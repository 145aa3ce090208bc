"""How good the pictures are: features, distances and the protocol that draws them."""
