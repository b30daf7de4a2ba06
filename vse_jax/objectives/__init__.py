"""What is optimised: (init, apply) pairs with a state of their own."""
