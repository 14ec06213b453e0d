"""How a loss is differentiated through the steps, beside plain backpropagation."""
