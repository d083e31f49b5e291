"""One module per benchmark: prompt, checks and scoring; `registry.TASK_KINDS` lists them."""
