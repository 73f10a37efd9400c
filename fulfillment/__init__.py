"""Order fulfilment for stores that sell CS2 skins."""
