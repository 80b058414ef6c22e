"""What the verbs run, on the machine of whoever types them."""
