"""Pictures laid out in rows."""

import numpy as np

from erase.model.draw import sheet


def test_sheet_puts_pictures_in_reading_order():
    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    laid = sheet(pictures, columns=3)
    assert laid.shape == (4, 9, 3)
    assert laid[::2, ::3, 0].tolist() == [[0, 1, 2], [3, 4, 255]]
