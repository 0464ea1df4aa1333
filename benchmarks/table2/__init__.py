"""The paper's Table 2 on the small model: prompt files, training, and the table."""
