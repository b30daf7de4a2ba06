// Of a `gr.HTML`: a place for a picture, whose value is the picture itself, as a data URL.
// Gradio gives: element, props, trigger.
const most = Number(props.most);
const take = (file) => {
  if (!file) return;
  // What it says becomes HTML, and a file may have any name.
  const told = (text) => { props.told = text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt()};`); };
  if (!props.types.split(",").includes(file.type))
    return told(`“${file.name}” is no picture of a known type: ${props.known}`);
  if (file.size > most)
    return told(`“${file.name}” has ${(file.size / 2 ** 20).toFixed(1)} MB; at most ${most / 2 ** 20} MB are taken`);
  const reader = new FileReader();
  reader.onerror = () => told(`“${file.name}” cannot be read`);
  reader.onload = () => { props.told = ""; props.value = reader.result; };
  reader.readAsDataURL(file);
};
const dropped = (event, on) => {
  event.preventDefault();
  element.querySelector(".place").classList.toggle("over", on);
};
element.addEventListener("change", (event) => {
  if (event.target.type !== "file") return;
  event.stopPropagation();
  take(event.target.files[0]);
  event.target.value = "";
});
element.addEventListener("click", (event) => {
  if (event.target.closest(".clear")) { props.value = ""; props.told = ""; }
  else if (event.target.closest(".place")) element.querySelector("input").click();
});
element.addEventListener("keydown", (event) => {
  if (event.target.matches(".place") && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    element.querySelector("input").click();
  }
});
element.addEventListener("dragover", (event) => dropped(event, true));
element.addEventListener("dragleave", (event) => dropped(event, false));
element.addEventListener("drop", (event) => { dropped(event, false); take(event.dataTransfer.files[0]); });
element.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
// A picture that came before would be lost.
element.dataset.ready = "";
