"""Groups of clients trained by stacked layers with their own forward and backward pass, without autograd.

For plain SGD the product that gives a weight's gradient takes the step, too, in place. A module is traced once
(`graph`), its parameters lie side by side for all slots (`memory`), and a `program` of layers is built for each number
of slots at work, over the same memory.
"""
