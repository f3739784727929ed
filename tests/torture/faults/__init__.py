"""Faults that are planted into processes of their own; see ``torture.planted``. They import nothing but what they change."""
