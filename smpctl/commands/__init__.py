"""The verbs, one module for each noun; imported when called. They print; the library does not."""
