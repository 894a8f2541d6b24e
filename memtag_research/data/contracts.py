MONEY_KINDS = ("sale", "return", "exchange", "gift", "service")
ORDER_KINDS = ("sale", "gift", "service")
UNIT_KINDS = ("sale",)
