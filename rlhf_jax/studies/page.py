"""page"""


def write_page(study, rows, config): ...
