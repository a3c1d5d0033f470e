"""Bearer tokens of OpenID Connect issuers: who may call with them is in one file, `PODIUM_OIDC_FILE`."""
