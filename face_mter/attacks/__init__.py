"""Attacks of face_mter."""
