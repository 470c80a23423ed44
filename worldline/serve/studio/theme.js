// Before anything is drawn: the colours that were chosen last.
const theme = localStorage.getItem("worldline-theme");
document.documentElement.dataset.theme = ["light", "dark"].includes(theme) ? theme : "auto";
