"""How a model shrinks: schemes and affine maths, RTN and GPTQ, recipes, plans, formats, kernels.

Algorithms are pure functions of tensors; `pipeline` has the verbs, `formats` the files.
"""
