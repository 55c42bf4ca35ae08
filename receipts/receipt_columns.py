"""What of a receipt stands beside its bytes in the ledger: to find it by, and to sum up usage."""

from receipts.arithmetic import picograms
from receipts.document import Receipt


def receipt_columns(document: Receipt, energy_microjoules: int | None) -> dict[str, object]:
    """The columns that copy the receipt's own members, with the energy that it bills; None where that isn't known."""
    workload, grams = document.workload, document.carbon.gco2eq_total
    return {
        "receipt_id": document.receipt_id,
        "request_id": document.receipt_id.removeprefix("rcpt_"),
        "account": workload.account,
        "seq": document.chain.seq,
        "end_unix_ns": document.execution.end_unix_ns,
        "model": workload.model,
        "region": document.silicon.region,
        "customer_tag": workload.customer_tag,
        "api_key_id": workload.api_key_id,
        "workload_name": workload.name,
        "input_tokens": workload.tokens.input,
        "output_tokens": workload.tokens.output,
        "energy_microjoules": energy_microjoules,
        "carbon_picograms": None if grams is None else picograms(grams),
        "usd_picos": document.price.usd_picos,
    }
