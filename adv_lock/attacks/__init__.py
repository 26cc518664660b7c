"""Attacks of adv_lock."""
