"""The paper's user study: a questionnaire on pictures of several methods, and its analysis."""
