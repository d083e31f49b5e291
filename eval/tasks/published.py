"""Published benchmark files: where they are published, their digests and sizes.

Addresses and digests are those of VLMEvalKit's dataset classes. `CONFIGS` has the folders of the
Hugging Face forms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_OPENCOMPASS = "https://opencompass.openxlab.space/utils/"


@dataclass(frozen=True)
class Published:
    """A published benchmark file."""

    kind: str  # a key of `registry.TASK_KINDS`
    address: str  # of the TSV, below `_OPENCOMPASS` unless it begins with https
    md5: str
    rows: int = 0  # 0: not published together with the digest
    split: str | None = None  # the scored split of a file with several
    scored: int = 0  # rows of that split

    @property
    def url(self) -> str:
        """Address of the TSV."""
        return self.address if self.address.startswith("https") else _OPENCOMPASS + self.address


PUBLISHED: Mapping[str, Published] = {
    "MMBench_DEV_EN": Published(
        "mmbench",
        "benchmarks/MMBench/MMBench_DEV_EN.tsv",
        "b6caf1133a01c6bb705cf753bb527ed8",
        4329,
    ),
    "MMBench_DEV_CN": Published(
        "mmbench",
        "benchmarks/MMBench/MMBench_DEV_CN.tsv",
        "08b8fc3324a5ed74155350f57be69fbd",
        4329,
    ),
    "MMBench_DEV_EN_V11": Published(
        "mmbench",
        "benchmarks/MMBench/MMBench_DEV_EN_V11.tsv",
        "30c05be8f2f347a50be25aa067248184",
    ),
    "MMBench_DEV_CN_V11": Published(
        "mmbench",
        "benchmarks/MMBench/MMBench_DEV_CN_V11.tsv",
        "593f9b5f6bea453d870a798b34ae4f37",
    ),
    "OCRBench": Published(
        "ocrbench", "VLMEval/OCRBench.tsv", "e953d98a987cc6e26ef717b61260b778", 1000
    ),
    "MMMU_DEV_VAL": Published(
        "mmmu",
        "VLMEval/MMMU_DEV_VAL.tsv",
        "585e8ad75e73f75dcad265dfd0417d64",
        1050,
        split="validation",
        scored=900,
    ),
    "MMMU_Pro_10c": Published(
        "mmmu_pro", "VLMEval/MMMU_Pro_10c.tsv", "22cee868fe6b680d14b99bfff6db8172", 1730
    ),
    "MMMU_Pro_V": Published(
        "mmmu_pro_vision", "VLMEval/MMMU_Pro_V.tsv", "d01441a87b3dbe721b5a04652ae38009", 1730
    ),
    "DocVQA_VAL": Published(
        "docvqa", "VLMEval/DocVQA_VAL.tsv", "d5ee77e1926ff10690d469c56b73eabf", 5349
    ),
    "InfoVQA_VAL": Published(
        "docvqa", "VLMEval/InfoVQA_VAL.tsv", "2342e9c225222f0ef4dec545ebb126fe", 2801
    ),
    "ChartQA_TEST": Published(
        "chartqa", "VLMEval/ChartQA_TEST.tsv", "c902e0aa9be5582a7aad6dcf52734b42", 2500
    ),
    "TextVQA_VAL": Published(
        "textvqa", "VLMEval/TextVQA_VAL.tsv", "b233b31f551bbf4056f2f955da3a92cd", 5000
    ),
    "OCRBench_v2": Published(
        "ocrbench_v2",
        "https://huggingface.co/datasets/QYWH/ocrbench_v2/resolve/main/OCRBench_v2.tsv",
        "65d04fe07b4d4ee33e73fc8e7d4d46b0",
        10000,
    ),
    "OCRBench_v2_MINI": Published(
        "ocrbench_v2", "VLMEval/OCRBench_v2_MINI.tsv", "11f79b8e1e0b0fe150964de4cb2feb02"
    ),
    "RefCOCO": Published(
        "refcoco",
        "https://huggingface.co/datasets/mjuicem/RefCOCO-VLMEvalKit/resolve/main/RefCOCO.tsv",
        "f50ca356638ddac89b309311fd876a5d",
    ),
    **{
        f"ScreenSpot{version}_{part}": Published(
            "screenspot",
            f"benchmarks/GUI/ScreenSpot{version}/ScreenSpot{version}_{part}.tsv",
            md5,
        )
        for version, part, md5 in (
            ("", "Mobile", "a5b5299843a75c9b9574c47bc13b2c53"),
            ("", "Desktop", "e6e7bac21b6b2475276404fce2458132"),
            ("", "Web", "e51d168c14b8582427cf3107d236cfc5"),
            ("_v2", "Mobile", "234c858ab4f0e787e8388a73df65a4b7"),
            ("_v2", "Desktop", "5f2aa2a497327bd33b2512a0c75cf994"),
            ("_v2", "Web", "01cd0877ee1b735a6d5190b053ba9482"),
        )
    },
}

ALIASES: Mapping[str, str] = {
    "mmmu-pro": "MMMU_Pro_10c",
    "mmmu-pro-vision": "MMMU_Pro_V",
    "docvqa": "DocVQA_VAL",
    "infovqa": "InfoVQA_VAL",
    "chartqa": "ChartQA_TEST",
    "textvqa": "TextVQA_VAL",
    "ocrbench-v2": "OCRBench_v2",
}
"""Short names of published benchmarks, in lower case."""

CONFIGS: Mapping[str, str] = {
    "MMBench_DEV_EN": "en",
    "MMBench_DEV_CN": "cn",
    "MMMU_Pro_10c": "standard (10 options)",
    "MMMU_Pro_V": "vision",
    "DocVQA_VAL": "DocVQA",
    "InfoVQA_VAL": "InfographicVQA",
}
"""Folder of a benchmark in the repository of its Hugging Face form."""
