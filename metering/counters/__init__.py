"""Energy counters behind one protocol: each adapter converts its device's unit to microjoules, once, here."""
