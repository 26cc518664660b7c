"""Networks of adv_lock."""
