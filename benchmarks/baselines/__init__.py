"""What the product is measured against, each written as its own documentation teaches."""
