// What all images are asked for with: a label, its guidance, the steps of the chain.

/** How the states of an attribute are written, and what follows which. */
const STATES = { either: "yes", yes: "no", no: "either" };

export class Wish {
  /** Called when it has changed. */
  onChange = () => {};
  #form;
  #kind;

  constructor(form, model) {
    this.#form = form;
    this.#kind = model.label_kind;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", () => this.#changed());
    const steps = form.querySelector("#chain-steps input");
    steps.max = model.limits.num_chain_steps;
    if (this.#kind === "none") return;
    form.querySelector("#labels").hidden = false;
    form.querySelector("#labels legend").textContent =
      this.#kind === "class" ? "Label" : "Attributes: yes, no, or either";
    const choices = form.querySelector(".choices");
    if (this.#kind === "class") {
      choices.append(classChoice("any", "", true), ...model.labels.map((name) => classChoice(name, name, false)));
    } else {
      choices.append(...model.labels.map((name) => this.#attribute(name)));
    }
    form.querySelector("#guidance input").addEventListener("input", () => this.#say());
    this.#say();
  }

  /** The fields of a request. */
  fields() {
    const fields = {};
    const steps = this.#form.querySelector("#chain-steps input").value;
    if (steps !== "") fields.num_chain_steps = steps;
    const label = this.#label();
    if (label) {
      fields.label = label;
      const guidance = this.#form.querySelector("#guidance input").value;
      if (Number(guidance)) fields.guidance = guidance;
    }
    return fields;
  }

  /** As --label takes it: names in double quotes, which may hold signs. */
  #label() {
    if (this.#kind === "none") return "";
    if (this.#kind === "class") {
      const name = this.#form.querySelector("input[name=label]:checked").value;
      return name && `"${name}"`;
    }
    return [...this.#form.querySelectorAll(".choices button")]
      .filter((button) => button.dataset.state !== "either")
      .map((button) => `${button.dataset.state === "no" ? "not " : ""}"${button.dataset.name}"`)
      .join(" & ");
  }

  #attribute(name) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.name = name;
    const set = (state) => {
      button.dataset.state = state;
      button.textContent = state === "no" ? `not ${name}` : name;
      button.setAttribute("aria-label", `${name}: ${state}`);
    };
    set("either");
    button.addEventListener("click", () => {
      set(STATES[button.dataset.state]);
      this.#changed();
    });
    return button;
  }

  #changed() {
    this.#say();
    this.onChange();
  }

  /** Guidance goes towards a label; without one there is nothing to choose. */
  #say() {
    const guidance = this.#form.querySelector("#guidance");
    guidance.hidden = !this.#label();
    guidance.querySelector(".value").textContent = guidance.querySelector("input").value;
  }
}

function classChoice(text, value, isChosen) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "radio", name: "label", value, checked: isChosen });
  label.append(input, text);
  return label;
}
