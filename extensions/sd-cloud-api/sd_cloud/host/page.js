() => {
  // Ctrl+Enter generates, as in the webui: the button of the tab that is shown.
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    const buttons = [...document.querySelectorAll("button[id$=_generate]")];
    const button = buttons.find((one) => one.offsetParent !== null && !one.disabled);
    if (!button) return;
    event.preventDefault();
    document.activeElement?.dispatchEvent(new Event("change", { bubbles: true }));
    button.click();
  });
}
