"""What adv_lock works on."""
