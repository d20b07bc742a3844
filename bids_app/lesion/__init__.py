"""From a brain to its lesions: models, fold averaging, lesions one by one."""
