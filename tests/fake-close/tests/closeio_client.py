"""Close's own Python client on the fake: what its maintainers' scripts do with /me/, /webhook/ and /event/.

Usage: closeio_client.py BASE_URL API_KEY. Prints one JSON object.
"""

import json
import sys

from closeio_api import API, ValidationError

api = API(sys.argv[1] + "/", sys.argv[2])
found = {"me": api.get("me")["id"]}

# Webhooks: made, refused twice, listed, changed, deleted.
events = [{"object_type": "lead", "action": "updated"}, {"object_type": "lead", "action": "merged"}]
made = api.post("webhook", data={"url": "https://example.com/hook", "events": events})
assert made["signature_key"] and made["status"] == "active", made
try:
    api.post("webhook", data={"url": "https://example.com/hook", "events": events})
    raise SystemExit("a duplicate was let through")
except ValidationError as refused:
    assert made["id"] in refused.errors[0], refused.errors
    found["refused"] = refused.errors[0]
assert [one["id"] for one in api.get("webhook")["data"]] == [made["id"]]
assert api.put("webhook/" + made["id"], data={"status": "paused"})["status"] == "paused"
assert api.get("webhook/" + made["id"])["pause_reason"] is None
assert api.delete("webhook/" + made["id"]) == {}
assert api.get("webhook", params={"_skip": 0, "_limit": 100})["data"] == []


def walk(params, cursor):
    """As the scripts do: the cursor goes into the same parameters, dates and all; the first one is empty or None."""
    listed = []
    has_more = True
    while has_more:
        params["_cursor"] = cursor
        page = api.get("event", params=params)
        listed += page["data"]
        cursor = page["cursor_next"]
        has_more = bool(cursor)
    return listed


everything = walk({}, None)
found["events"] = len(everything)
assert len({one["id"] for one in everything}) == len(everything)
merged = walk({"object_type": "lead", "action": "merged"}, "")
assert merged and all(one["action"] == "merged" for one in merged)
newest, oldest = everything[0]["date_updated"], everything[-1]["date_updated"]
dated = {"object_type": "lead", "action": "updated", "date_updated__gte": oldest, "date_updated__lte": newest}
updated = walk(dict(dated), "")
assert len(updated) > 50 and all(one["data"] for one in updated), len(updated)
by_lead = walk({**dated, "lead_id": updated[0]["lead_id"]}, "")
assert by_lead and all(one["lead_id"] == updated[0]["lead_id"] for one in by_lead)
with_user = next(one for one in updated if one["user_id"])
by_user = walk({**dated, "user_id": with_user["user_id"]}, "")
assert with_user["id"] in [one["id"] for one in by_user]
by_request = walk({"request_id": with_user["request_id"]}, None)
assert with_user["id"] in [one["id"] for one in by_request]
between = walk({"date_updated__gt": oldest, "date_updated__lt": newest}, None)
assert 0 < len(between) < len(everything)
deleted = walk({"object_type": "activity.note", "action": "deleted", "lead_id": updated[0]["lead_id"]}, "")
assert all(one["previous_data"] for one in deleted)
assert api.get("event/" + everything[0]["id"])["id"] == everything[0]["id"]
try:
    api.get("event", params={"_cursor": "long gone"})
    raise SystemExit("a cursor of nobody was let through")
except ValidationError as refused:
    found["cursor"] = refused.response.json()
print(json.dumps(found))
