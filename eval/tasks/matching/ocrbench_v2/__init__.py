"""Metrics of the task types of OCRBench v2, after the evaluation code of its authors.

Fu et al., "OCRBench v2", arXiv 2501.00321; repository Yuliang-Liu/MultimodalOCR,
OCRBench_v2/eval_scripts. Every metric is in [0, 1].
"""
