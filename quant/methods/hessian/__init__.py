"""The Hessian of a layer: its factor, and its preparation for solvers."""
