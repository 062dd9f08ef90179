// The API as Swagger UI shows it; nothing is sent to a validator elsewhere.
SwaggerUIBundle({ url: "/api/openapi.json", dom_id: "#api", validatorUrl: null, defaultModelsExpandDepth: 0 });
