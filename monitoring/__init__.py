"""Checks that stand between selection and export."""
